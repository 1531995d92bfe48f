DROP TABLE backstop_audit;
