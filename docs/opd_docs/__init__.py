"""Generated parts of the site: from recipes, measurements, schema, commands and docstrings."""
