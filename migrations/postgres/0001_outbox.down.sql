DROP TABLE backstop_outbox_dead;
DROP TABLE backstop_outbox;
