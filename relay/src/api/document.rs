//! The OpenAPI document, made from the handlers.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::problem::ProblemView;
use super::{audit, held, letters, outboxes, redrives};

#[derive(OpenApi)]
#[openapi(
    info(title = "Backstop relay", description = "Dead letters, redrives and outboxes of a relay.", license(name = "MIT OR Apache-2.0")),
    servers((url = "/api/v1")),
    paths(
        letters::groups, letters::list, letters::count, letters::show, letters::reveal, letters::discard,
        letters::hold, letters::release, redrives::plan, redrives::list, redrives::create, redrives::show,
        redrives::pause, redrives::resume, redrives::cancel, redrives::rate, outboxes::list, outboxes::dead,
        outboxes::consumers, held::list, held::end, audit::list,
    ),
    components(schemas(ProblemView)),
)]
struct Api;

/// The OpenAPI document of the HTTP API. Every operation may end in a problem document, too.
pub(super) fn document() -> Document {
    let mut document = Api::openapi();
    let components = document.components.get_or_insert_default();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme("token", token);
    document
}

pub(super) async fn get() -> Json<Document> {
    Json(document())
}
