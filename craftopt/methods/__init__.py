"""Methods: a problem and options in, an outcome out."""
