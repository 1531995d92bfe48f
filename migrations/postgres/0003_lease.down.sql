DROP TABLE backstop_lease;
