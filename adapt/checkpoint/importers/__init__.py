"""Importers: one file each, registered by being in this folder."""
