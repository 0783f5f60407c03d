"""What the site says that is not written by hand: made from recipes, measurements, schema, commands and docstrings."""
