"""Every merge method, space and router in one table over worlds whose truth is known."""
