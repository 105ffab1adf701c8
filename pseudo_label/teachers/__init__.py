"""Teachers: views of unlabeled rows that each say something of the labels, one file each."""
