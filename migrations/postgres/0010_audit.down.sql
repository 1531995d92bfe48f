DROP TABLE backstop_audit;
DROP FUNCTION backstop_audit_grows();
