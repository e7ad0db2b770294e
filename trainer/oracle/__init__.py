"""The oracle: what training a model computes, in one plain process, written from the papers."""
