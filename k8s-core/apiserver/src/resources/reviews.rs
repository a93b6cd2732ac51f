//! Reviews as resources. They are not stored and not in the registry, but admission sees their creation.

use std::sync::{Arc, LazyLock};

use k8s_core::api::api::{authentication::v1 as authentication, authorization::v1 as authorization};
use k8s_schema::{self as schema, Generate};

use super::{Resource, Row, built_in, types::generate};

static ROWS: &[Row] = &[
    Row::new(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        generate::<authentication::SelfSubjectReview>,
    )
    .cluster(),
    Row::new(
        "authentication.k8s.io",
        "v1",
        "TokenReview",
        "tokenreviews",
        generate::<authentication::TokenReview>,
    )
    .cluster(),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        generate::<authorization::LocalSubjectAccessReview>,
    ),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        generate::<authorization::SelfSubjectAccessReview>,
    )
    .cluster(),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        generate::<authorization::SelfSubjectRulesReview>,
    )
    .cluster(),
    Row::new(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        generate::<authorization::SubjectAccessReview>,
    )
    .cluster(),
];

static REVIEWS: LazyLock<Vec<Arc<Resource>>> = LazyLock::new(|| {
    let generates: Vec<Generate> = ROWS.iter().map(|row| row.generate).collect();
    let schemas = schema::builtin(&generates);
    ROWS.iter().zip(schemas).map(|(row, schema)| Arc::new(built_in(row, schema))).collect()
});

/// Returns the resource of a review by group and plural name.
pub(crate) fn review(group: &str, plural: &str) -> Option<&'static Arc<Resource>> {
    REVIEWS.iter().find(|review| review.group == group && review.plural == plural)
}
