"""What is measured of a tokenizer or a camera before it is used."""
