//! The OpenAPI document, made from the handlers.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::path::PathItem;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi as Document, Ref, ResponseBuilder};

use super::problem::ProblemView;
use super::{audit, held, letters, outboxes, redrives, rules};

#[derive(OpenApi)]
#[openapi(
    info(title = "Backstop relay", description = "Dead letters, redrives and outboxes of a relay.", license(name = "MIT OR Apache-2.0")),
    servers((url = "/api/v1")),
    paths(
        letters::groups, letters::list, letters::count, letters::minutes, letters::show, letters::reveal, letters::edit,
        letters::discard, letters::hold, letters::release, redrives::plan, redrives::list, redrives::create, redrives::show,
        redrives::pause, redrives::resume, redrives::cancel, redrives::rate, rules::list, rules::resume, outboxes::list, outboxes::dead,
        outboxes::consumers, held::list, held::end, audit::list,
    ),
    components(schemas(ProblemView)),
)]
struct Api;

/// How every operation may end in a problem document.
const PROBLEMS: [(&str, &str); 2] = [
    ("4XX", "It makes no sense, is not allowed, not there, or not as things stand"),
    ("503", "The ledger's database does not answer"),
];

/// The OpenAPI document of the HTTP API.
pub(super) fn document() -> Document {
    let mut document = Api::openapi();
    let components = document.components.get_or_insert_default();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", token);
    document.paths.paths.values_mut().for_each(add_problems);
    document
}

fn add_problems(path: &mut PathItem) {
    for operation in [&mut path.get, &mut path.post].into_iter().flatten() {
        for (status, what) in PROBLEMS {
            let view = ContentBuilder::new().schema(Some(Ref::from_schema_name("ProblemView"))).build();
            let response = ResponseBuilder::new().description(what).content("application/problem+json", view);
            operation.responses.responses.insert(status.to_owned(), response.build().into());
        }
    }
}

pub(super) async fn get() -> Json<Document> {
    Json(document())
}
