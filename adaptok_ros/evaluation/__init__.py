"""How good the stream is, measured on clips so that others can repeat it; knows no ROS."""
