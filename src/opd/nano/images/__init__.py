"""The nano image suite: small flow-matching models of images that a program draws and a judge checks."""
