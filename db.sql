-- The schema of the inventory, for SQLite and for PostgreSQL. inventory_api.py runs it in one transaction where there is
-- no table `products`: the portable part, then the part of its engine. Statements end at an empty line.
--
-- Other programs may insert, update and delete with plain SQL: defaults and triggers keep every column true.

-- == portable ==

CREATE TABLE products (
    id INTEGER PRIMARY KEY CHECK (id > 0),
    -- Each CAST refuses a value of another type, which SQLite would let into the column.
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 200 AND name = CAST(name AS TEXT)),
    -- Cents, because SQLite stores a NUMERIC as a float.
    price_cents INTEGER NOT NULL CHECK (price_cents BETWEEN 0 AND 999999999 AND price_cents = CAST(price_cents AS INTEGER)),
    stock_level INTEGER NOT NULL CHECK (stock_level BETWEEN 0 AND 2147483647 AND stock_level = CAST(stock_level AS INTEGER)),
    version BIGINT NOT NULL DEFAULT 1 CHECK (version > 0 AND version = CAST(version AS BIGINT)),
    updated_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
    -- Private: the name as search compares it. inventory_api.py folds every letter; for other writers a trigger folds ASCII.
    name_folded TEXT
);

-- == sqlite ==

-- The id under a name that SQLite does not take for the rowid: only so does a row value seek by both of its columns
-- instead of reading through all rows of one price. The CHECK refuses what PostgreSQL's types refuse by themselves.
ALTER TABLE products ADD COLUMN seq INTEGER AS (id) VIRTUAL CHECK (
    instr(name, char(0)) = 0
    AND updated_at GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][T ][0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'
);

-- Pages by price, price ranges; the folded name lets a search filter without looking at the table.
CREATE INDEX products_by_price ON products (price_cents, seq, name_folded);

-- Pages by name; the rest lets a search filter without looking at the table.
CREATE INDEX products_by_name ON products (name, seq, name_folded, price_cents);

-- Substrings of three characters and more.
CREATE VIRTUAL TABLE products_trigrams USING fts5 (
    name_folded, content = 'products', content_rowid = 'id', columnsize = 0, tokenize = 'trigram case_sensitive 1'
);

CREATE TRIGGER products_index_insert AFTER INSERT ON products
WHEN NEW.name_folded IS NOT NULL
BEGIN
    INSERT INTO products_trigrams (rowid, name_folded) VALUES (NEW.id, NEW.name_folded);
END;

CREATE TRIGGER products_index_delete AFTER DELETE ON products
WHEN OLD.name_folded IS NOT NULL
BEGIN
    INSERT INTO products_trigrams (products_trigrams, rowid, name_folded) VALUES ('delete', OLD.id, OLD.name_folded);
END;

CREATE TRIGGER products_index_update AFTER UPDATE OF id, name_folded ON products
BEGIN
    INSERT INTO products_trigrams (products_trigrams, rowid, name_folded)
    SELECT 'delete', OLD.id, OLD.name_folded WHERE OLD.name_folded IS NOT NULL;
    INSERT INTO products_trigrams (rowid, name_folded)
    SELECT NEW.id, NEW.name_folded WHERE NEW.name_folded IS NOT NULL;
END;

CREATE TRIGGER products_fold_insert AFTER INSERT ON products
WHEN NEW.name_folded IS NULL
BEGIN
    UPDATE products SET name_folded = lower(name) WHERE id = NEW.id;
END;

CREATE TRIGGER products_fold_update AFTER UPDATE OF name ON products
WHEN NEW.name IS NOT OLD.name AND NEW.name_folded IS OLD.name_folded
BEGIN
    UPDATE products SET name_folded = lower(name) WHERE id = NEW.id;
END;

-- One more with every change, whoever makes it and whatever it sets. Setting the same values again changes nothing.
CREATE TRIGGER products_version AFTER UPDATE OF id, name, price_cents, stock_level, version, updated_at ON products
WHEN NEW.version IS NOT OLD.version + 1 OR NEW.updated_at IS NOT CURRENT_TIMESTAMP
BEGIN
    UPDATE products SET version = OLD.version + 1, updated_at = CURRENT_TIMESTAMP WHERE id = NEW.id;
END;

-- What was changed last, for every process on this file: each looks here when PRAGMA data_version tells of a commit, and
-- forgets those products. What is older than some thousand changes nobody needs. By its mark one knows a change again:
-- after an older copy of the file was restored, other changes get the same numbers.
CREATE TABLE product_changes (
    n INTEGER PRIMARY KEY, product_id INTEGER NOT NULL, mark INTEGER NOT NULL DEFAULT (random())
);

INSERT INTO product_changes (n, product_id) VALUES (0, 0);

CREATE TRIGGER products_change_insert AFTER INSERT ON products
BEGIN
    INSERT INTO product_changes (product_id) VALUES (NEW.id);
END;

CREATE TRIGGER products_change_delete AFTER DELETE ON products
BEGIN
    INSERT INTO product_changes (product_id) VALUES (OLD.id);
END;

CREATE TRIGGER products_change_update AFTER UPDATE ON products
BEGIN
    INSERT INTO product_changes (product_id) VALUES (NEW.id);
    INSERT INTO product_changes (product_id) SELECT OLD.id WHERE OLD.id <> NEW.id;
END;

CREATE TRIGGER product_changes_bound AFTER INSERT ON product_changes
WHEN NEW.n % 1000 = 0
BEGIN
    DELETE FROM product_changes WHERE n <= NEW.n - 1000;
END;

-- == postgresql ==

CREATE EXTENSION IF NOT EXISTS pg_trgm;

-- BIGSERIAL would be portable in looks only: SQLite takes it and stores ids that are NULL. Text sorts by code point, as in
-- SQLite, not by the database's language. A tenth of each page is kept free, so that most updates of stock touch no index.
ALTER TABLE products
    ALTER COLUMN id TYPE BIGINT,
    ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY,
    ALTER COLUMN name TYPE TEXT COLLATE "C",
    ALTER COLUMN name_folded TYPE TEXT COLLATE "C",
    ALTER COLUMN updated_at TYPE TIMESTAMPTZ,
    SET (fillfactor = 90);

-- Pages by price, price ranges; the names let a search filter without looking at the table.
CREATE INDEX products_by_price ON products (price_cents, id) INCLUDE (name_folded, name);

-- Pages by name; the rest lets a search filter without looking at the table.
CREATE INDEX products_by_name ON products (name, id) INCLUDE (name_folded, price_cents);

-- Substrings of three characters and more. pg_trgm takes a space for the end of a word and forgets what stands across it,
-- so the index sees a letter there. What is new waits in a list that every search reads: each session of inventory_api.py
-- keeps it short (gin_pending_list_limit).
CREATE INDEX products_trigrams ON products USING gin (replace(name_folded, ' ', U&'\A000') gin_trgm_ops);

CREATE FUNCTION products_fold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.name_folded IS NULL THEN
        NEW.name_folded := lower(NEW.name COLLATE "C");
    ELSIF TG_OP = 'UPDATE' THEN
        IF NEW.name <> OLD.name AND NEW.name_folded = OLD.name_folded THEN
            NEW.name_folded := lower(NEW.name COLLATE "C");
        END IF;
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER products_fold BEFORE INSERT OR UPDATE OF name, name_folded ON products
FOR EACH ROW EXECUTE FUNCTION products_fold();

-- One more with every change, whoever makes it and whatever it sets.
CREATE FUNCTION products_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    NEW.updated_at := CURRENT_TIMESTAMP;
    RETURN NEW;
END $$;

CREATE TRIGGER products_version BEFORE UPDATE OF id, name, price_cents, stock_level, version, updated_at ON products
FOR EACH ROW EXECUTE FUNCTION products_version();

-- Each process of inventory_api.py listens, and forgets the products whose ids a notification lists: those of one statement.
-- An empty one stands for all. It is sent with the commit, or not at all.
CREATE FUNCTION products_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('inventory_products', CASE WHEN count(*) <= 100 THEN string_agg(id::text, ',') ELSE '' END)
    FROM (SELECT id FROM changed LIMIT 101) AS listed
    HAVING count(*) > 0;
    RETURN NULL;
END $$;

CREATE FUNCTION products_notify_all() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('inventory_products', '');
    RETURN NULL;
END $$;

CREATE TRIGGER products_notify_insert AFTER INSERT ON products
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_notify();

CREATE TRIGGER products_notify_update AFTER UPDATE ON products
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_notify();

CREATE TRIGGER products_notify_delete AFTER DELETE ON products
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION products_notify();

CREATE TRIGGER products_notify_move AFTER UPDATE OF id ON products
FOR EACH ROW WHEN (OLD.id <> NEW.id) EXECUTE FUNCTION products_notify_all();

CREATE TRIGGER products_notify_truncate AFTER TRUNCATE ON products
FOR EACH STATEMENT EXECUTE FUNCTION products_notify_all();
