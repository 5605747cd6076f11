"""Tables: what columns are, and the formats that they are written in and read from."""
