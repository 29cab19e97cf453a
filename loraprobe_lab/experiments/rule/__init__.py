"""Error rates of the rule after evaluation: wrong `likely`, wrong `unlikely`, and abstentions."""
