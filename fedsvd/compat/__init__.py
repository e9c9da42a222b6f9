"""The private names of other packages that fedsvd uses, one module for each package."""
