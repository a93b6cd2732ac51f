//! The images on a node: a content-addressed store of unpacked layers.
//!
//! Flow: [`ImageStore::import`] (from an archive) or [`Images::pull`](crate::Images::pull) (from a registry)
//! get manifest, configuration and layers. Each layer is unpacked once, into a directory named by its content
//! that all images share. Containers use these directories as overlayfs lower directories
//! ([`ImageStore::resolve`]).
//! Guarantees:
//! 1. Every blob is verified against its digest before it is used.
//! 2. A layer is complete or absent: it is unpacked to a temporary directory and then renamed.
//! 3. The index is replaced atomically, so a crash loses at most the image that was being added.
//!
//! Not here: running containers, image signatures.
//!
//! ```text
//! index.json             the index of images and layers
//! blobs/sha256/<hex>     manifests and configurations
//! layers/<32 hex>/       one unpacked layer each, named for its diff id
//! tmp/                   work in progress, emptied at open
//! ```

mod archive;
pub mod build;
mod elf;
pub mod reference;
pub mod registry;
mod store;
#[cfg(test)]
mod tests;
mod unpack;

pub use self::{
    build::ImageBuilder,
    reference::Reference,
    registry::Registries,
    store::{ImageStore, ResolvedImage},
};
