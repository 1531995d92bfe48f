DROP TABLE backstop_held;
DROP TABLE backstop_inbox;
