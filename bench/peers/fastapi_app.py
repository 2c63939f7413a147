"""The routes as one would write them with FastAPI and SQLAlchemy: OFFSET paging, ILIKE search, no cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query
from models import SORTS, Product, Session
from pydantic import BaseModel
from sqlalchemy import Select, select
from sqlalchemy.orm import Session as OrmSession

app = FastAPI()


class ProductOut(BaseModel):
    id: int
    name: str
    price: str
    stock_level: int
    version: int


class Change(BaseModel):
    stock_delta: int


def get_session() -> Iterator[OrmSession]:
    with Session() as session:
        yield session


Db = Annotated[OrmSession, Depends(get_session)]
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0)]


def page(session: OrmSession, query: Select[tuple[Product]], sort: str, limit: int, offset: int) -> list[ProductOut]:
    rows = session.scalars(query.order_by(*SORTS[sort]).limit(limit).offset(offset))
    return [ProductOut(**product.as_dict()) for product in rows]


@app.get("/products")
def products(session: Db, limit: Limit = 50, offset: Offset = 0, sort: str = "id") -> list[ProductOut]:
    return page(session, select(Product), sort, limit, offset)


@app.get("/products/search")
def search(session: Db, name: str, limit: Limit = 50, offset: Offset = 0, sort: str = "id") -> list[ProductOut]:
    return page(session, select(Product).where(Product.name.icontains(name, autoescape=True)), sort, limit, offset)


@app.get("/products/{id}")
def product(session: Db, id: int) -> ProductOut:
    found = session.get(Product, id)
    if found is None:
        raise HTTPException(404)
    return ProductOut(**found.as_dict())


@app.patch("/products/{id}")
def update(session: Db, id: int, change: Change) -> ProductOut:
    found = session.get(Product, id)
    if found is None:
        raise HTTPException(404)
    found.stock_level += change.stock_delta
    session.commit()
    return ProductOut(**found.as_dict())
