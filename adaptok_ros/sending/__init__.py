"""From camera images to packets."""
