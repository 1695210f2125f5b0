#!/usr/bin/env bash
# Prints a JobSet that trains on TPU slices of a GKE cluster, for kubectl.
#
#   NAME=ast IMAGE=REGISTRY/astjax CLAIM=shared \
#     TPU=tpu-v5-lite-podslice TOPOLOGY=4x4 launch/gke.sh \
#     --config=configs/ast_audioset.py --workdir=/shared/runs/a |
#     kubectl apply -f -
#
# NAME      of the JobSet
# IMAGE     built from Containerfile with PLATFORM=tpu
# CLAIM     a persistent volume claim that many pods may write to, at /shared
# TPU       nodes' label cloud.google.com/gke-tpu-accelerator
# TOPOLOGY  of one slice, in chips: nodes' label ...gke-tpu-topology
# CHIPS     of one node (4)
# SLICES    how many slices train together (1)
# SPOT      1: on spot nodes
# RESTARTS  of all pods, after crashes and preemptions (20)
set -euo pipefail
(: "${NAME:?}" "${IMAGE:?}" "${CLAIM:?}" "${TPU:?}" "${TOPOLOGY:?}") || exit 2
: "${CHIPS:=4}" "${SLICES:=1}" "${RESTARTS:=20}"
all=$((${TOPOLOGY//x/*})) hosts=$((all / CHIPS))
if ((all != hosts * CHIPS)); then
  echo "TOPOLOGY=$TOPOLOGY has $all chips, which CHIPS=$CHIPS does not divide" >&2
  exit 2
fi
# A pod that trains alone has nobody to look for.
((hosts * SLICES > 1)) || set -- "$@" --num_processes=1
spot=${SPOT:+'cloud.google.com/gke-spot: "true"'}
flags=${*@Q}
flags=${flags//\$/\$\$} # Kubernetes makes one $ of two, and may replace $(...)

# All pods of all slices train together: JAX finds them by what GKE tells each.
cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  annotations:
    # One slice, which is one node pool, for each replica of the job below.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    # A lost pod or node starts all pods again, which resume.
    maxRestarts: $RESTARTS
    rules:
      - name: userMistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: slice
      replicas: $SLICES
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              # The exit code of a mistake, which no restart mends.
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2]
          template:
            spec:
              restartPolicy: Never
              # As process 1 the trainer would not hear signals early on.
              shareProcessNamespace: true
              # From SIGTERM, at which the trainer saves, to SIGKILL.
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $TPU
                cloud.google.com/gke-tpu-topology: $TOPOLOGY
                $spot
              containers:
                - name: train
                  image: $IMAGE
                  command: [bash, -c]
                  args:
                    - |
                      exec python -m astjax.main $flags
                  securityContext:
                    runAsUser: 0 # to whom the TPU's device files belong
                  ports:
                    - containerPort: 8471 # between the TPUs' drivers
                    - containerPort: 8080 # between slices
                    - containerPort: 8482 # jax.distributed
                  resources:
                    limits:
                      google.com/tpu: $CHIPS
                  volumeMounts:
                    - name: shared
                      mountPath: /shared
              volumes:
                - name: shared
                  persistentVolumeClaim:
                    claimName: $CLAIM
YAML
