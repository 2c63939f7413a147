"""The table as SQLAlchemy sees it, for the two peers."""

from __future__ import annotations

import os
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

URL = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
Session = sessionmaker(create_engine(URL, pool_size=16))


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price_cents: Mapped[int]
    stock_level: Mapped[int]
    version: Mapped[int]

    def as_dict(self) -> dict[str, Any]:
        price = f"{self.price_cents // 100}.{self.price_cents % 100:02}"
        return {
            "id": self.id, "name": self.name, "price": price, "stock_level": self.stock_level, "version": self.version,
        }  # fmt: skip


SORTS = {"id": [Product.id], "price": [Product.price_cents, Product.id], "name": [Product.name, Product.id]}
