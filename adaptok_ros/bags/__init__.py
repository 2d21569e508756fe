"""Recorded streams, read and written without ROS."""
