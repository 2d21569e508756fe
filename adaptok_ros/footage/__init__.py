"""Everything that gives images for measuring, training and showing."""
