DROP TABLE backstop_outbox_scheduled;
