DROP TABLE backstop_letter_event;
DROP TABLE backstop_letter;
