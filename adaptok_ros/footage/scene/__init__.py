"""A rendered scene: a robot arm that moves a block, with sensor noise."""
