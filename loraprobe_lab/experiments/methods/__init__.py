"""Every merge method, space and router in one table over controlled worlds."""
