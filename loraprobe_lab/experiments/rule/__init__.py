"""Error rates of the rule after evaluation: wrong `likely`, wrong `unlikely`, and abstentions.

They are exact for one comparison (`exact`) and simulated for several systems (`simulated`).
"""
