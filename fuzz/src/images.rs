//! Image archives, as `hyperkube image load` reads them.

use k8s_runtime::images::ImageStore;

use crate::Target;

pub(crate) const ARCHIVE: Target = Target {
    name: "image_archive",
    seeds: &[
        // One tar member of no bytes, and what a gzip and a zstd stream begin with.
        b"index.json\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\00000644\00000000\00000000\000000000000\000000000000\0",
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0",
        b"\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00",
    ],
    run: |data| {
        let Ok(directory) = tempfile::tempdir() else { return };
        let Ok(store) = ImageStore::open(directory.path()) else { return };
        let _ = store.import(data);
    },
};
