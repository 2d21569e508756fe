"""ROS 2 nodes: they wire topics, parameters and services to the core, and compute nothing."""
