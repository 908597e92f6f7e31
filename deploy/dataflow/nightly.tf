# A tag job every night: Cloud Scheduler launches the Flex Template, and what both may do.
# The job's own options stand in the file of var.config.

variable "project" { type = string }
variable "region" { type = string }
variable "template" {
  type        = string
  description = "gs:// URL of the template that `gcloud dataflow flex-template build` made"
}
variable "image" {
  type        = string
  description = "the image that deploy/dataflow/Dockerfile made"
}
variable "config" {
  type        = string
  description = "gs:// URL of the job's options (job.yaml)"
}
variable "archive_bucket" {
  type        = string
  description = "is read"
}
variable "output_bucket" {
  type        = string
  description = "is written: tables, and Dataflow's temporary files"
}
variable "repository" {
  type        = string
  description = "the Artifact Registry repository of the image"
}
variable "subnetwork" {
  type        = string
  description = "regions/REGION/subnetworks/NAME, with Private Google Access"
}
variable "schedule" {
  type    = string
  default = "0 2 * * *"
}
variable "machine_type" {
  type    = string
  default = "g2-standard-8"
}
variable "gpu" {
  type    = string
  default = "nvidia-l4"
}
variable "max_workers" {
  type    = number
  default = 10
}

resource "google_service_account" "worker" {
  project      = var.project
  account_id   = "beamtag-worker"
  display_name = "Beamtag: the job's launcher and workers"
}

resource "google_service_account" "scheduler" {
  project      = var.project
  account_id   = "beamtag-scheduler"
  display_name = "Beamtag: launches the job every night"
}

# The workers.
resource "google_project_iam_member" "worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

# The launcher asks whether the job of the run that holds the output still runs.
resource "google_project_iam_member" "worker_asks" {
  project = var.project
  role    = "roles/dataflow.viewer"
  member  = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "reads" {
  bucket = var.archive_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "writes" {
  bucket = var.output_bucket
  role   = "roles/storage.objectAdmin"
  member = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "pulls" {
  project    = var.project
  location   = var.region
  repository = var.repository
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

# The scheduler.
resource "google_project_iam_member" "launches" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.scheduler.member
}

resource "google_service_account_iam_member" "as_worker" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.scheduler.member
}

resource "google_storage_bucket_iam_member" "reads_template" {
  bucket = var.output_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.scheduler.member
}

resource "google_cloud_scheduler_job" "nightly" {
  project   = var.project
  region    = var.region
  name      = "beamtag-nightly"
  schedule  = var.schedule
  time_zone = "Etc/UTC"

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body = base64encode(jsonencode({
      launchParameter = {
        # One name for every night: Dataflow refuses a second job of it while the first one runs.
        jobName              = "beamtag-nightly"
        containerSpecGcsPath = var.template
        parameters = {
          config                   = var.config
          device                   = "cuda"
          dataflow_service_options = "worker_accelerator=type:${var.gpu};count:1;install-nvidia-driver"
        }
        environment = {
          machineType           = var.machine_type
          maxWorkers            = var.max_workers
          diskSizeGb            = 100
          sdkContainerImage     = var.image
          additionalExperiments = ["no_use_multiple_sdk_containers"]
          subnetwork            = var.subnetwork
          ipConfiguration       = "WORKER_IP_PRIVATE"
          serviceAccountEmail   = google_service_account.worker.email
          tempLocation          = "gs://${var.output_bucket}/dataflow/temp"
          stagingLocation       = "gs://${var.output_bucket}/dataflow/staging"
        }
      }
    }))
    oauth_token {
      service_account_email = google_service_account.scheduler.email
    }
  }
}
