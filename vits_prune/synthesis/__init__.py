"""A Voice and a text become Speech."""
