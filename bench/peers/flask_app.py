"""The routes as one would write them with Flask and SQLAlchemy: OFFSET paging, ILIKE search, no cache."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, abort, jsonify, request
from models import SORTS, Product, Session
from sqlalchemy import Select, select

app = Flask(__name__)


def page(query: Select[tuple[Product]]) -> Response:
    limit, offset = request.args.get("limit", 50, int), request.args.get("offset", 0, int)
    query = query.order_by(*SORTS[request.args.get("sort", "id")]).limit(limit).offset(offset)
    with Session() as session:
        return jsonify([product.as_dict() for product in session.scalars(query)])


@app.get("/products")
def products() -> Response:
    return page(select(Product))


@app.get("/products/search")
def search() -> Response:
    return page(select(Product).where(Product.name.icontains(request.args["name"], autoescape=True)))


@app.get("/products/<int:id>")
def product(id: int) -> dict[str, Any]:
    with Session() as session:
        return (session.get(Product, id) or abort(404)).as_dict()


@app.patch("/products/<int:id>")
def update(id: int) -> dict[str, Any]:
    with Session() as session:
        found = session.get(Product, id) or abort(404)
        found.stock_level += request.get_json()["stock_delta"]
        session.commit()
        return found.as_dict()
