"""Small command lines over the library."""
