//! The table of built-in resources.
//!
//! It has the versions that upstream 1.36 serves by default, and below them versions that it no longer serves
//! but that manifests since Kubernetes 1.5 use. A legacy row refers to the row that stores its objects.

use crate::resources::types::generate;
use k8s_core::api::{
    api, apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions,
    kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration,
};

use super::{
    Row, columns,
    convert::{self, Legacy},
    strategy::{
        admission, aggregate, autoscale, certificates, classes, core, csi, dra, events, extensions, flow,
        job, network, pod, pod_certificates, policy, rbac, service, storage, trust, workload,
    },
};

/// All built-in resources, in their stored versions.
pub(super) static ROWS: &[Row] = &[
    Row::new("", "v1", "ConfigMap", "configmaps", generate::<api::core::v1::ConfigMap>)
        .short(&["cm"])
        .strategy(&core::CONFIG_MAP)
        .columns(&columns::CONFIGMAPS),
    Row::new("", "v1", "Endpoints", "endpoints", generate::<api::core::v1::Endpoints>)
        .short(&["ep"])
        .strategy(&core::ENDPOINTS)
        .columns(&columns::ENDPOINTS),
    Row::new("", "v1", "Event", "events", generate::<api::core::v1::Event>)
        .short(&["ev"])
        .fields(&[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source=source.component|reportingComponent",
            "type",
        ])
        .columns(&columns::EVENTS)
        .strategy(&events::EVENT),
    Row::new("", "v1", "LimitRange", "limitranges", generate::<api::core::v1::LimitRange>)
        .short(&["limits"])
        .strategy(&policy::LIMIT_RANGE),
    Row::new("", "v1", "Namespace", "namespaces", generate::<api::core::v1::Namespace>)
        .cluster()
        .short(&["ns"])
        .status()
        .special(&[("finalize", "", "Namespace", "update")])
        .without(&["deletecollection"])
        .fields(&["status.phase"])
        .strategy(&core::NAMESPACE)
        .columns(&columns::NAMESPACES),
    Row::new("", "v1", "Node", "nodes", generate::<api::core::v1::Node>)
        .cluster()
        .short(&["no"])
        .status()
        .special(&[("proxy", "", "NodeProxyOptions", "create,delete,get,patch,update")])
        .fields(&["spec.unschedulable?false"])
        .strategy(&core::NODE)
        .columns(&columns::NODES),
    Row::new(
        "",
        "v1",
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        generate::<api::core::v1::PersistentVolumeClaim>,
    )
    .short(&["pvc"])
    .status()
    .strategy(&storage::PERSISTENT_VOLUME_CLAIM)
    .columns(&columns::PERSISTENTVOLUMECLAIMS),
    Row::new("", "v1", "PersistentVolume", "persistentvolumes", generate::<api::core::v1::PersistentVolume>)
        .cluster()
        .short(&["pv"])
        .status()
        .strategy(&storage::PERSISTENT_VOLUME)
        .columns(&columns::PERSISTENTVOLUMES),
    Row::new("", "v1", "Pod", "pods", generate::<api::core::v1::Pod>)
        .short(&["po"])
        .category("all")
        .status()
        .special(&[
            ("attach", "", "PodAttachOptions", "create,get"),
            ("binding", "", "Binding", "create"),
            ("ephemeralcontainers", "", "Pod", "get,patch,update"),
            ("eviction", "policy/v1", "Eviction", "create"),
            ("exec", "", "PodExecOptions", "create,get"),
            ("log", "", "Pod", "get"),
            ("portforward", "", "PodPortForwardOptions", "create,get"),
            ("proxy", "", "PodProxyOptions", "create,delete,get,patch,update"),
            ("resize", "", "Pod", "get,patch,update"),
        ])
        .fields(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork?false",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ])
        .strategy(&pod::STRATEGY)
        .columns(&columns::PODS),
    Row::new("", "v1", "PodTemplate", "podtemplates", generate::<api::core::v1::PodTemplate>)
        .columns(&columns::PODTEMPLATES)
        .strategy(&workload::POD_TEMPLATE),
    Row::new(
        "",
        "v1",
        "ReplicationController",
        "replicationcontrollers",
        generate::<api::core::v1::ReplicationController>,
    )
    .short(&["rc"])
    .category("all")
    .status()
    .scale()
    .fields(&["status.replicas"])
    .strategy(&workload::REPLICATION_CONTROLLER)
    .columns(&columns::REPLICATIONCONTROLLERS),
    Row::new("", "v1", "ResourceQuota", "resourcequotas", generate::<api::core::v1::ResourceQuota>)
        .short(&["quota"])
        .status()
        .columns(&columns::RESOURCEQUOTAS)
        .strategy(&policy::RESOURCE_QUOTA),
    Row::new("", "v1", "Secret", "secrets", generate::<api::core::v1::Secret>)
        .fields(&["type"])
        .strategy(&core::SECRET)
        .columns(&columns::SECRETS),
    Row::new("", "v1", "ServiceAccount", "serviceaccounts", generate::<api::core::v1::ServiceAccount>)
        .short(&["sa"])
        .special(&[("token", "authentication.k8s.io/v1", "TokenRequest", "create")])
        .strategy(&core::PLAIN)
        .columns(&columns::SERVICEACCOUNTS),
    Row::new("", "v1", "Service", "services", generate::<api::core::v1::Service>)
        .short(&["svc"])
        .category("all")
        .status()
        .special(&[("proxy", "", "ServiceProxyOptions", "create,delete,get,patch,update")])
        .fields(&["spec.clusterIP", "spec.type"])
        .strategy(&service::STRATEGY)
        .columns(&columns::SERVICES),
    Row::new(
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservices",
        generate::<apiregistration::APIService>,
    )
    .cluster()
    .category("api-extensions")
    .status()
    .columns(&columns::APISERVICES)
    .strategy(&aggregate::API_SERVICE),
    Row::new(
        "apps",
        "v1",
        "ControllerRevision",
        "controllerrevisions",
        generate::<api::apps::v1::ControllerRevision>,
    )
    .columns(&columns::CONTROLLERREVISIONS)
    .strategy(&classes::CONTROLLER_REVISION),
    Row::new("apps", "v1", "DaemonSet", "daemonsets", generate::<api::apps::v1::DaemonSet>)
        .short(&["ds"])
        .category("all")
        .status()
        .strategy(&workload::DAEMON_SET)
        .columns(&columns::DAEMONSETS),
    Row::new("apps", "v1", "Deployment", "deployments", generate::<api::apps::v1::Deployment>)
        .short(&["deploy"])
        .category("all")
        .status()
        .scale()
        .strategy(&workload::DEPLOYMENT)
        .columns(&columns::DEPLOYMENTS),
    Row::new("apps", "v1", "ReplicaSet", "replicasets", generate::<api::apps::v1::ReplicaSet>)
        .short(&["rs"])
        .category("all")
        .status()
        .scale()
        .fields(&["status.replicas"])
        .strategy(&workload::REPLICA_SET)
        .columns(&columns::REPLICASETS),
    Row::new("apps", "v1", "StatefulSet", "statefulsets", generate::<api::apps::v1::StatefulSet>)
        .short(&["sts"])
        .category("all")
        .status()
        .scale()
        .strategy(&workload::STATEFUL_SET)
        .columns(&columns::STATEFULSETS),
    Row::new(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        generate::<api::autoscaling::v2::HorizontalPodAutoscaler>,
    )
    .short(&["hpa"])
    .category("all")
    .status()
    .strategy(&autoscale::HORIZONTAL_POD_AUTOSCALER)
    .columns(&columns::HORIZONTALPODAUTOSCALERS),
    Row::new("batch", "v1", "CronJob", "cronjobs", generate::<api::batch::v1::CronJob>)
        .short(&["cj"])
        .category("all")
        .status()
        .strategy(&job::CRON_JOB)
        .columns(&columns::CRONJOBS),
    Row::new("batch", "v1", "Job", "jobs", generate::<api::batch::v1::Job>)
        .category("all")
        .status()
        .fields(&["status.successful=status.succeeded"])
        .strategy(&job::JOB)
        .columns(&columns::JOBS),
    Row::new(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        generate::<api::certificates::v1::CertificateSigningRequest>,
    )
    .cluster()
    .short(&["csr"])
    .status()
    .special(&[("approval", "", "CertificateSigningRequest", "get,patch,update")])
    .fields(&["spec.signerName"])
    .columns(&columns::CERTIFICATESIGNINGREQUESTS)
    .strategy(&certificates::CERTIFICATE_SIGNING_REQUEST),
    Row::new(
        "certificates.k8s.io",
        "v1beta1",
        "ClusterTrustBundle",
        "clustertrustbundles",
        generate::<api::certificates::v1beta1::ClusterTrustBundle>,
    )
    .off()
    .cluster()
    .fields(&["spec.signerName"])
    .columns(&columns::CLUSTERTRUSTBUNDLES)
    .strategy(&trust::CLUSTER_TRUST_BUNDLE),
    Row::new(
        "certificates.k8s.io",
        "v1beta1",
        "PodCertificateRequest",
        "podcertificaterequests",
        generate::<api::certificates::v1beta1::PodCertificateRequest>,
    )
    .off()
    .status()
    .fields(&["spec.signerName", "spec.podName", "spec.nodeName"])
    .columns(&columns::PODCERTIFICATEREQUESTS)
    .strategy(&pod_certificates::POD_CERTIFICATE_REQUEST),
    Row::new(
        "networking.k8s.io",
        "v1",
        "IngressClass",
        "ingressclasses",
        generate::<api::networking::v1::IngressClass>,
    )
    .cluster()
    .columns(&columns::INGRESSCLASSES)
    .strategy(&network::INGRESS_CLASS),
    Row::new("networking.k8s.io", "v1", "Ingress", "ingresses", generate::<api::networking::v1::Ingress>)
        .short(&["ing"])
        .status()
        .strategy(&network::INGRESS)
        .columns(&columns::INGRESSES),
    Row::new(
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddresses",
        generate::<api::networking::v1::IPAddress>,
    )
    .columns(&columns::IPADDRESSES)
    .cluster()
    .short(&["ip"])
    .strategy(&network::IP_ADDRESS),
    Row::new(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        generate::<api::networking::v1::NetworkPolicy>,
    )
    .short(&["netpol"])
    .strategy(&network::NETWORK_POLICY)
    .columns(&columns::NETWORKPOLICIES),
    Row::new(
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        generate::<api::networking::v1::ServiceCIDR>,
    )
    .columns(&columns::SERVICECIDRS)
    .cluster()
    .status()
    .strategy(&network::SERVICE_CIDR),
    Row::new(
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        generate::<api::policy::v1::PodDisruptionBudget>,
    )
    .short(&["pdb"])
    .status()
    .columns(&columns::PODDISRUPTIONBUDGETS)
    .strategy(&policy::POD_DISRUPTION_BUDGET),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        generate::<api::rbac::v1::ClusterRoleBinding>,
    )
    .cluster()
    .strategy(&rbac::BINDING)
    .columns(&columns::CLUSTERROLEBINDINGS),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
        generate::<api::rbac::v1::ClusterRole>,
    )
    .cluster()
    .strategy(&rbac::ROLE)
    .columns(&columns::CLUSTERROLES),
    Row::new(
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
        generate::<api::rbac::v1::RoleBinding>,
    )
    .strategy(&rbac::BINDING)
    .columns(&columns::ROLEBINDINGS),
    Row::new("rbac.authorization.k8s.io", "v1", "Role", "roles", generate::<api::rbac::v1::Role>)
        .strategy(&rbac::ROLE)
        .columns(&columns::ROLES),
    Row::new("storage.k8s.io", "v1", "CSIDriver", "csidrivers", generate::<api::storage::v1::CSIDriver>)
        .columns(&columns::CSIDRIVERS)
        .cluster()
        .strategy(&csi::CSI_DRIVER),
    Row::new("storage.k8s.io", "v1", "CSINode", "csinodes", generate::<api::storage::v1::CSINode>)
        .columns(&columns::CSINODES)
        .cluster()
        .strategy(&csi::CSI_NODE),
    Row::new(
        "storage.k8s.io",
        "v1",
        "CSIStorageCapacity",
        "csistoragecapacities",
        generate::<api::storage::v1::CSIStorageCapacity>,
    )
    .strategy(&csi::CSI_STORAGE_CAPACITY),
    Row::new(
        "storage.k8s.io",
        "v1",
        "StorageClass",
        "storageclasses",
        generate::<api::storage::v1::StorageClass>,
    )
    .cluster()
    .short(&["sc"])
    .strategy(&storage::STORAGE_CLASS)
    .columns(&columns::STORAGECLASSES),
    Row::new(
        "storage.k8s.io",
        "v1",
        "VolumeAttachment",
        "volumeattachments",
        generate::<api::storage::v1::VolumeAttachment>,
    )
    .columns(&columns::VOLUMEATTACHMENTS)
    .cluster()
    .status()
    .strategy(&csi::VOLUME_ATTACHMENT),
    Row::new(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        generate::<api::storage::v1::VolumeAttributesClass>,
    )
    .columns(&columns::VOLUMEATTRIBUTESCLASSES)
    .cluster()
    .short(&["vac"])
    .strategy(&csi::VOLUME_ATTRIBUTES_CLASS),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicy",
        "mutatingadmissionpolicies",
        generate::<api::admissionregistration::v1::MutatingAdmissionPolicy>,
    )
    .columns(&columns::MUTATINGADMISSIONPOLICIES)
    .cluster()
    .category("api-extensions")
    .strategy(&admission::MUTATING_POLICY),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
        "mutatingadmissionpolicybindings",
        generate::<api::admissionregistration::v1::MutatingAdmissionPolicyBinding>,
    )
    .columns(&columns::ADMISSIONPOLICYBINDINGS)
    .cluster()
    .category("api-extensions")
    .strategy(&admission::MUTATING_BINDING),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        generate::<api::admissionregistration::v1::MutatingWebhookConfiguration>,
    )
    .columns(&columns::WEBHOOKCONFIGURATIONS)
    .cluster()
    .category("api-extensions")
    .strategy(&admission::MUTATING_WEBHOOKS),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
        generate::<api::admissionregistration::v1::ValidatingAdmissionPolicy>,
    )
    .columns(&columns::VALIDATINGADMISSIONPOLICIES)
    .cluster()
    .category("api-extensions")
    .status()
    .strategy(&admission::VALIDATING_POLICY),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        generate::<api::admissionregistration::v1::ValidatingAdmissionPolicyBinding>,
    )
    .columns(&columns::ADMISSIONPOLICYBINDINGS)
    .cluster()
    .category("api-extensions")
    .strategy(&admission::VALIDATING_BINDING),
    Row::new(
        "admissionregistration.k8s.io",
        "v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        generate::<api::admissionregistration::v1::ValidatingWebhookConfiguration>,
    )
    .columns(&columns::WEBHOOKCONFIGURATIONS)
    .cluster()
    .category("api-extensions")
    .strategy(&admission::VALIDATING_WEBHOOKS),
    Row::new(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        generate::<apiextensions::CustomResourceDefinition>,
    )
    .cluster()
    .short(&["crd", "crds"])
    .category("api-extensions")
    .status()
    .strategy(&extensions::CUSTOM_RESOURCE_DEFINITION)
    .columns(&columns::CUSTOMRESOURCEDEFINITIONS),
    Row::new(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        "priorityclasses",
        generate::<api::scheduling::v1::PriorityClass>,
    )
    .cluster()
    .short(&["pc"])
    .columns(&columns::PRIORITYCLASSES)
    .strategy(&classes::PRIORITY_CLASS),
    Row::new("coordination.k8s.io", "v1", "Lease", "leases", generate::<api::coordination::v1::Lease>)
        .columns(&columns::LEASES)
        .strategy(&classes::LEASE),
    Row::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", generate::<api::node::v1::RuntimeClass>)
        .columns(&columns::RUNTIMECLASSES)
        .cluster()
        .strategy(&classes::RUNTIME_CLASS),
    Row::new(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        generate::<api::discovery::v1::EndpointSlice>,
    )
    .strategy(&network::ENDPOINT_SLICE)
    .columns(&columns::ENDPOINTSLICES),
    Row::new(
        "resource.k8s.io",
        "v1",
        "DeviceClass",
        "deviceclasses",
        generate::<api::resource::v1::DeviceClass>,
    )
    .columns(&columns::NAME_AND_AGE)
    .cluster()
    .strategy(&dra::DEVICE_CLASS),
    Row::new(
        "resource.k8s.io",
        "v1",
        "ResourceClaim",
        "resourceclaims",
        generate::<api::resource::v1::ResourceClaim>,
    )
    .columns(&columns::RESOURCECLAIMS)
    .status()
    .strategy(&dra::RESOURCE_CLAIM),
    Row::new(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        generate::<api::resource::v1::ResourceClaimTemplate>,
    )
    .columns(&columns::NAME_AND_AGE)
    .strategy(&dra::RESOURCE_CLAIM_TEMPLATE),
    Row::new(
        "resource.k8s.io",
        "v1",
        "ResourceSlice",
        "resourceslices",
        generate::<api::resource::v1::ResourceSlice>,
    )
    .columns(&columns::RESOURCESLICES)
    .cluster()
    .strategy(&dra::RESOURCE_SLICE),
    Row::new(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "FlowSchema",
        "flowschemas",
        generate::<api::flowcontrol::v1::FlowSchema>,
    )
    .columns(&columns::FLOWSCHEMAS)
    .cluster()
    .status()
    .strategy(&flow::FLOW_SCHEMA),
    Row::new(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        generate::<api::flowcontrol::v1::PriorityLevelConfiguration>,
    )
    .columns(&columns::PRIORITYLEVELCONFIGURATIONS)
    .cluster()
    .status()
    .strategy(&flow::PRIORITY_LEVEL),
    Row::new(
        "extensions",
        "v1beta1",
        "ThirdPartyResource",
        "thirdpartyresources",
        generate::<k8s_core::legacy::ThirdPartyResource>,
    )
    .cluster()
    .strategy(&extensions::THIRD_PARTY_RESOURCE),
];

/// Resources of version v1 that are not stored: group, plural, kind, namespaced.
pub(super) const UNSTORED: [(&str, &str, &str, bool); 8] = [
    ("", "bindings", "Binding", true),
    ("", "componentstatuses", "ComponentStatus", false),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", false),
    ("authentication.k8s.io", "tokenreviews", "TokenReview", false),
    ("authorization.k8s.io", "localsubjectaccessreviews", "LocalSubjectAccessReview", true),
    ("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    ("authorization.k8s.io", "subjectaccessreviews", "SubjectAccessReview", false),
];

/// Further versions of the rows above.
pub(super) static LEGACY: &[Legacy] = &[
    Legacy::new("autoscaling", "v1", "autoscaling", "horizontalpodautoscalers")
        .with(&convert::autoscaling::V1),
    Legacy::new("autoscaling", "v2beta2", "autoscaling", "horizontalpodautoscalers"),
    Legacy::new("autoscaling", "v2beta1", "autoscaling", "horizontalpodautoscalers")
        .with(&convert::autoscaling::V2BETA1),
    Legacy::new("apps", "v1beta2", "apps", "deployments").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta2", "apps", "replicasets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta2", "apps", "daemonsets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta2", "apps", "statefulsets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta2", "apps", "controllerrevisions"),
    Legacy::new("apps", "v1beta1", "apps", "deployments").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta1", "apps", "statefulsets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("apps", "v1beta1", "apps", "controllerrevisions"),
    Legacy::new("batch", "v1beta1", "batch", "cronjobs"),
    Legacy::new("batch", "v2alpha1", "batch", "cronjobs"),
    Legacy::new("policy", "v1beta1", "policy", "poddisruptionbudgets"),
    Legacy::new("networking.k8s.io", "v1beta1", "networking.k8s.io", "ingresses")
        .with(&convert::ingress::V1BETA1),
    Legacy::new("networking.k8s.io", "v1beta1", "networking.k8s.io", "ingressclasses"),
    Legacy::new("storage.k8s.io", "v1beta1", "storage.k8s.io", "storageclasses"),
    Legacy::new("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io", "roles"),
    Legacy::new("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io", "clusterroles"),
    Legacy::new("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io", "rolebindings"),
    Legacy::new("rbac.authorization.k8s.io", "v1beta1", "rbac.authorization.k8s.io", "clusterrolebindings"),
    Legacy::new("events.k8s.io", "v1", "", "events")
        .with(&convert::events::EVENT)
        .fields(convert::events::FIELDS),
    Legacy::new("events.k8s.io", "v1beta1", "", "events")
        .with(&convert::events::EVENT)
        .fields(convert::events::FIELDS),
    Legacy::new("apiextensions.k8s.io", "v1beta1", "apiextensions.k8s.io", "customresourcedefinitions")
        .with(&convert::definitions::V1BETA1),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1beta1",
        "admissionregistration.k8s.io",
        "validatingwebhookconfigurations",
    )
    .with(&convert::webhooks::WEBHOOKS),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1beta1",
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
    )
    .with(&convert::webhooks::WEBHOOKS),
    Legacy::new("storage.k8s.io", "v1beta1", "storage.k8s.io", "csidrivers"),
    Legacy::new("storage.k8s.io", "v1beta1", "storage.k8s.io", "csinodes"),
    Legacy::new("storage.k8s.io", "v1beta1", "storage.k8s.io", "volumeattachments"),
    Legacy::new("node.k8s.io", "v1beta1", "node.k8s.io", "runtimeclasses"),
    Legacy::new("scheduling.k8s.io", "v1beta1", "scheduling.k8s.io", "priorityclasses"),
    Legacy::new("coordination.k8s.io", "v1beta1", "coordination.k8s.io", "leases"),
    // Versions that are served only where `--runtime-config` turns them on, as upstream.
    Legacy::new("certificates.k8s.io", "v1alpha1", "certificates.k8s.io", "clustertrustbundles").off(),
    Legacy::new("networking.k8s.io", "v1beta1", "networking.k8s.io", "ipaddresses").off(),
    Legacy::new("networking.k8s.io", "v1beta1", "networking.k8s.io", "servicecidrs").off(),
    Legacy::new("storage.k8s.io", "v1beta1", "storage.k8s.io", "volumeattributesclasses").off(),
    Legacy::new("resource.k8s.io", "v1beta2", "resource.k8s.io", "deviceclasses").off(),
    Legacy::new("resource.k8s.io", "v1beta2", "resource.k8s.io", "resourceclaims").off(),
    Legacy::new("resource.k8s.io", "v1beta2", "resource.k8s.io", "resourceclaimtemplates").off(),
    Legacy::new("resource.k8s.io", "v1beta2", "resource.k8s.io", "resourceslices").off(),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1beta1",
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
    )
    .off(),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1beta1",
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
    )
    .off(),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1alpha1",
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicies",
    )
    .off(),
    Legacy::new(
        "admissionregistration.k8s.io",
        "v1alpha1",
        "admissionregistration.k8s.io",
        "mutatingadmissionpolicybindings",
    )
    .off(),
    Legacy::new("extensions", "v1beta1", "apps", "deployments").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("extensions", "v1beta1", "apps", "replicasets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("extensions", "v1beta1", "apps", "daemonsets").with(&convert::workload::OLD_WORKLOAD),
    Legacy::new("extensions", "v1beta1", "networking.k8s.io", "ingresses")
        .with(&convert::ingress::EXTENSIONS),
    Legacy::new("extensions", "v1beta1", "networking.k8s.io", "networkpolicies"),
];
