DROP TABLE backstop_receipt;
