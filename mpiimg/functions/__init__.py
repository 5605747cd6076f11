"""Functions of users: how they are declared, loaded, tried and called."""
