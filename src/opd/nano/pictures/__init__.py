"""The nano picture suite: small flow-matching models of pictures that a program draws and a judge can check."""
