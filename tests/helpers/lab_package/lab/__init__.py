"""A method, a data set and a head for fedsvd, as another package adds them."""
