-- migrate:up
CREATE TABLE IF NOT EXISTS orders (
    id uuid PRIMARY KEY,
    idempotency_key text UNIQUE CHECK (length(idempotency_key) <= 255),
    correlation_id text NOT NULL,
    item jsonb NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- migrate:down
DROP TABLE IF EXISTS orders;
