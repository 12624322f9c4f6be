"""Every way of carrying information along a sequence: one method a file, whose stem is its name for `build`."""
