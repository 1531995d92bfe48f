-- Who owns a job, by this server's clock. The row stays when a lease ends, so that its token only ever grows.
CREATE TABLE backstop_lease (
    name       text COLLATE "C" PRIMARY KEY,
    owner      text COLLATE "C",
    token      bigint NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);
