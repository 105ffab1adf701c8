"""Starting ranks here and on other hosts, and waiting for them."""
