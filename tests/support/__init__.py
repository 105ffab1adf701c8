"""Helpers that tests share: small models and files, naive references, stand-ins, and how commands and ranks are started."""
