"""A method and a data set for fedsvd, as another package adds them."""
