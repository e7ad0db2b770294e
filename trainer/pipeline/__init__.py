"""How the model is cut into stages and what travels between them."""
