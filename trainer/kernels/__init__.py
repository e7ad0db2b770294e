"""How things are computed: matrix products, norms, attention and loss, by the library that is fastest here."""
