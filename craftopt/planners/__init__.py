"""Planners, the searches behind the methods: a problem and options in, an outcome out."""
